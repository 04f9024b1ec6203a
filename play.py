"""Watch or steer an episode: python play.py ckpt=last steer=true."""

from priorzero.app.cli import play_main

if __name__ == "__main__":
    play_main()
