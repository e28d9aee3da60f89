"""The command `kubectl-finetune`. It is installed even without the packages that it needs."""

import importlib
import sys


def main() -> None:
    """Run the commands of the client package, or name the extra that installs what they need."""
    try:
        cli = importlib.import_module("finetune_client.cli")
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        sys.exit(f"Error: `kubectl finetune` needs the package {package}: pip install 'finetune-operator[client]'")
    cli.main()
