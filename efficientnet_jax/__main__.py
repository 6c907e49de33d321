"""`python -m efficientnet_jax`: the command of main.py."""

from efficientnet_jax.cli.command import main

if __name__ == '__main__':
    main()
