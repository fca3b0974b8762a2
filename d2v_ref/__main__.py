"""``python -m d2v_ref`` is ``d2v-ref``."""

from d2v_ref.cli import main

if __name__ == "__main__":
    main()
