"""OpenAI's archives and OpenCLIP's state dicts, read and written."""

from clipjax.interop.open_clip.names import leaves
