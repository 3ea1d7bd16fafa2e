"""``python -m data_pipelines plan | write | inspect | verify | …``; each has --help."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status (0 done, 1 a fault found by verify, 2 an error
    that the user can mend, 130 interrupted)."""
    # Imported here: an interrupt during the imports ends as quietly as a later one.
    try:
        from data_pipelines.errors import UserError, refused

        try:
            from data_pipelines import commands

            return commands.run(arguments)
        except BrokenPipeError:
            raise
        except (UserError, OSError) as error:
            said = refused(error) if isinstance(error, OSError) else error
            print(f"error: {said}", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has seen enough (`inspect ... | head`).
        sys.stderr.close()
        return 141


if __name__ == "__main__":
    sys.exit(main())
