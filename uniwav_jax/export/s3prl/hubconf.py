"""The entry that s3prl's hub lists: `-u uniwav_local -k DIR`."""

from .expert import UpstreamExpert as _UpstreamExpert


def uniwav_local(ckpt: str, *args, **kwargs) -> _UpstreamExpert:
    """The model of an exported directory."""
    return _UpstreamExpert(ckpt, *args, **kwargs)
