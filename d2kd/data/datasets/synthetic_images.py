# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Draws one picture of the synthetic shapes set: textured background, distractors, coloured shapes.

Every picture is a function of one numpy Generator, so any of them can be drawn again alone.

Shape shorthand:
    S: side of the (square) image in pixels
    P: points of a polygon
"""

from typing import NamedTuple

import cv2
import numpy as np

__all__ = [
    "CLASSES",
    "IMAGE_SIZE",
    "MIN_VISIBLE",
    "Shape",
    "draw_picture",
    "place_shapes",
    "polygon_mask",
    "unit_polygon",
]

IMAGE_SIZE = 160
# In pairs that differ in one property only: aspect, aspect, depth of the notches.
CLASSES = ("circle", "ellipse", "square", "rectangle", "pentagon", "star")
_MAX_OBJECTS = 6
_SIZE_RANGE = (10.0, 80.0)
MIN_VISIBLE = 0.4
_SUPERSAMPLE = 4
# Share of the shapes whose hue is that of their pair, and the distance (BGR, 0..255 a channel)
# from its surroundings that a colour is chosen for.
_TYPICAL_HUE = 0.7
_MIN_CONTRAST = 70.0
_PLACEMENT_TRIES = 12


class Shape(NamedTuple):
    """One drawn object.

    Attributes:
        category: class index.
        box: full extents (x0, y0, x1, y1) in pixels, clipped to the image.
    """

    category: int
    box: tuple[float, float, float, float]


def unit_polygon(name: str, rng: np.random.Generator) -> np.ndarray:
    """A shape of the given class around the origin, in no particular scale.

    Returns:
        (P, 2) float64 corners x, y.
    """
    if name in ("circle", "ellipse"):
        angles = np.arange(64) * (2 * np.pi / 64)
        aspect = 1.0 if name == "circle" else rng.uniform(1.35, 2.2)
        return np.stack([aspect * np.cos(angles), np.sin(angles)], axis=1)
    if name in ("square", "rectangle"):
        aspect = 1.0 if name == "square" else rng.uniform(1.35, 2.2)
        return np.array([[-aspect, -1], [aspect, -1], [aspect, 1], [-aspect, 1]], dtype=float)
    if name not in ("pentagon", "star"):
        raise ValueError(f"Unknown shape {name!r}; known: {CLASSES}")
    angles = np.arange(10) * (2 * np.pi / 10)
    # cos(36 degrees) puts the inner points on the sides of the pentagon: no notch at all.
    inner = np.cos(np.pi / 5) if name == "pentagon" else rng.uniform(0.42, 0.58)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _random_polygon(name: str, rng: np.random.Generator) -> np.ndarray:
    """A shape of the given class, rotated, sized and placed at random.

    The longer side of its extents lies in _SIZE_RANGE, small ones more often; its centre lies in
    the image.

    Returns:
        (P, 2) float64 corners in pixels; parts may lie outside the image.
    """
    points = unit_polygon(name, rng)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    points = points @ np.array([[cos, sin], [-sin, cos]])
    low, high = points.min(axis=0), points.max(axis=0)
    size = rng.uniform(*np.sqrt(_SIZE_RANGE)) ** 2
    center = rng.uniform(4, IMAGE_SIZE - 4, size=2)
    return (points - (low + high) / 2) * (size / (high - low).max()) + center


def polygon_mask(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Antialiased coverage of a polygon, drawn at _SUPERSAMPLE times the resolution.

    Args:
        points: (P, 2) float64 corners in pixels.

    Returns:
        (S, S) float32 coverage in [0, 1], and the covered area in pixels, outside parts included.
    """
    low = np.floor(points.min(axis=0)).astype(int)
    width, height = np.ceil(points.max(axis=0)).astype(int) - low
    canvas = np.zeros((height * _SUPERSAMPLE, width * _SUPERSAMPLE), dtype=np.uint8)
    # OpenCV's integer coordinates are the centres of pixels, ours their upper left corners.
    corners = np.round((points - low) * _SUPERSAMPLE - 0.5).astype(np.int32)
    cv2.fillPoly(canvas, [corners], 255)
    patch = cv2.resize(canvas, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    x0, y0 = np.maximum(low, 0)
    x1, y1 = np.minimum(low + (width, height), IMAGE_SIZE)
    mask[y0:y1, x0:x1] = patch[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]] / 255.0
    return mask, float(patch.sum() / 255.0)


def _background(rng: np.random.Generator) -> np.ndarray:
    """Gradient, soft blotches, stripes, grain of random strength; (S, S, 3) float32 in 0..255."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) / IMAGE_SIZE
    angle, stripe_angle, phase = rng.uniform(0, 2 * np.pi, size=3)
    first, second = rng.uniform(40, 200, size=(2, 3)).astype(np.float32)
    ramp = np.clip(0.5 + (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle), 0, 1)[..., None]
    image = first * (1 - ramp) + second * ramp
    cells = int(rng.integers(4, 24))
    blotches = rng.normal(size=(cells, cells, 3)).astype(np.float32)
    image = image + rng.uniform(4, 20) * cv2.resize(
        blotches, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC
    )
    wave = x * np.cos(stripe_angle) + y * np.sin(stripe_angle)
    stripes = np.sin(2 * np.pi * rng.uniform(3, 20) * wave + phase)[..., None]
    image = image + rng.uniform(0, 16) * stripes * rng.uniform(-1, 1, size=3)
    image = image + rng.uniform(2, 8) * rng.standard_normal(image.shape, dtype=np.float32)
    return image.astype(np.float32)


def _draw_distractors(image: np.ndarray, rng: np.random.Generator, count: int) -> None:
    """Draw lines, crosses and fuzzy blobs, which belong to no class, into the image."""
    for kind in rng.integers(0, 3, size=count):
        color = rng.uniform(0, 255, size=3)
        x, y = rng.uniform(0, IMAGE_SIZE, size=2)
        mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
        width = int(rng.integers(1, 4))
        dx, dy = rng.uniform(-40, 40, size=2)
        if kind == 0:
            cv2.line(mask, (int(x), int(y)), (int(x + dx), int(y + dy)), 255, width, cv2.LINE_AA)
        elif kind == 1:
            dx, dy = dx / 4, dy / 4
            for sx, sy in ((dx, dy), (-dy, dx)):
                start, end = (int(x - sx), int(y - sy)), (int(x + sx), int(y + sy))
                cv2.line(mask, start, end, 255, width, cv2.LINE_AA)
        else:
            cv2.circle(mask, (int(x), int(y)), int(rng.integers(4, 16)), 255, -1)
            mask[:] = cv2.GaussianBlur(mask, (0, 0), rng.uniform(4, 8))
        alpha = mask[..., None] * np.float32(rng.uniform(0.4, 0.9) / 255)
        image += alpha * (color.astype(np.float32) - image)


def _random_color(category: int, rng: np.random.Generator) -> np.ndarray:
    """A colour, in BGR: most shapes have about the hue of their pair of classes, some have any.

    The hue narrows a shape down to its pair, for a small network to learn first; which of the
    two it is only its outline tells.

    Returns:
        (3,) float32 in 0..255.
    """
    typical = rng.uniform() < _TYPICAL_HUE
    hue = (category // 2 * 120 + rng.normal(0, 18)) if typical else rng.uniform(0, 360)
    hsv = np.array([[[hue % 360, rng.uniform(0.45, 1), rng.uniform(0.5, 1)]]], dtype=np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0] * 255


def _draw_shape(
    image: np.ndarray, mask: np.ndarray, category: int, rng: np.random.Generator
) -> None:
    """Blend one shape into the image: a colour that differs from what is there, with grain."""
    local = image[mask > 0.5].mean(axis=0) if (mask > 0.5).any() else image.mean(axis=(0, 1))
    candidates = np.stack([_random_color(category, rng) for _ in range(8)])
    distance = np.linalg.norm(candidates - local, axis=1)
    # The first that can be seen, else the best there is.
    color = candidates[np.argmax(distance >= min(_MIN_CONTRAST, distance.max()))]
    grain = rng.uniform(0, 10) * rng.standard_normal(image.shape, dtype=np.float32)
    image += mask[..., None] * (color + grain - image)


def place_shapes(rng: np.random.Generator) -> tuple[list[Shape], list[np.ndarray]]:
    """Choose 1 to _MAX_OBJECTS shapes, later ones in front.

    A shape is only placed where it and every earlier one keep MIN_VISIBLE of their whole area in
    sight, so no shape in a picture goes without its box.

    Returns:
        The shapes, and their (S, S) float32 masks.
    """
    shapes: list[Shape] = []
    masks: list[np.ndarray] = []
    visible: list[np.ndarray] = []
    areas: list[float] = []
    wanted = int(rng.integers(1, _MAX_OBJECTS + 1))
    for _ in range(_PLACEMENT_TRIES * wanted):
        category = int(rng.integers(len(CLASSES)))
        points = _random_polygon(CLASSES[category], rng)
        mask, area = polygon_mask(points)
        remaining = [seen * (1 - mask) for seen in visible] + [mask]
        if any(seen.sum() < MIN_VISIBLE * a for seen, a in zip(remaining, areas + [area])):
            continue
        box = np.concatenate([points.min(axis=0), points.max(axis=0)]).clip(0, IMAGE_SIZE)
        x0, y0, x1, y1 = box.tolist()
        shapes.append(Shape(category, (x0, y0, x1, y1)))
        masks.append(mask)
        visible, areas = remaining, areas + [area]
        if len(shapes) == wanted:
            break
    return shapes, masks


def draw_picture(rng: np.random.Generator) -> tuple[np.ndarray, list[Shape]]:
    """Draw one picture.

    Returns:
        (S, S, 3) uint8 image in BGR order, and its shapes from back to front.
    """
    shapes, masks = place_shapes(rng)
    image = _background(rng)
    _draw_distractors(image, rng, count=int(rng.integers(2, 7)))
    for shape, mask in zip(shapes, masks):
        _draw_shape(image, mask, shape.category, rng)
    _draw_distractors(image, rng, count=int(rng.integers(0, 3)))
    return image.clip(0, 255).round().astype(np.uint8), shapes
