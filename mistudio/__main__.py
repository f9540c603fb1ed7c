import os
import sys


def main() -> None:
    """`mistudio …`, `python -m mistudio …` and `python manage.py …` are one and the same."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mistudio.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as wrong:  # by who set it up, who needs the sentence and no traceback
        sys.exit(f"miStudio cannot start. {wrong}")


if __name__ == "__main__":
    main()
