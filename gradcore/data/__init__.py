"""The series that come with the package; README.md names their origin."""
