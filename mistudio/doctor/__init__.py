"""What `manage.py doctor` finds of an installation. Importing this registers all that it looks at."""

import jobs.doctor
from mistudio.doctor import artifacts, data_folder, database, hub, packages, site

__all__ = ["artifacts", "data_folder", "database", "hub", "jobs", "packages", "site"]
