#!/usr/bin/env python
from mistudio.__main__ import main

if __name__ == "__main__":
    main()
