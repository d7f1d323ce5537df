"""What a distilled step costs."""
