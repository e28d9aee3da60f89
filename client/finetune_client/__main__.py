"""`python -m finetune_client`: the same as `kubectl finetune`."""

from finetune_client.cli import main

if __name__ == "__main__":
    main()
