"""Train: python train.py experiment=zork_lora."""

from priorzero.app.cli import train_main

if __name__ == "__main__":
    train_main()
