"""A worker: `python -m stmae_data.engines package.module:function`."""

import sys

from stmae_data.engines.local import work

if __name__ == "__main__":
    work(sys.argv[1])
