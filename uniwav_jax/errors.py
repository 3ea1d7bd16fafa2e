"""The one exception for a user's mistake; shared with the data side."""

from data_pipelines.errors import UserError

__all__ = ["UserError"]
