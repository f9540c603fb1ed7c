import os
import sys


def main() -> None:
    """`mistudio …`, `python -m mistudio …` and `python manage.py …` are one and the same."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mistudio.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
