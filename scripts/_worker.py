"""The process that does runs for a launcher."""

import _repository

from scripts.launching.worker import main

if __name__ == "__main__":
    main()
