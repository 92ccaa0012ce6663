"""Pictures to pixels: decoded within limits, cropped and resized as published."""
