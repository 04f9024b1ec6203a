"""Evaluate: python eval.py ckpt=logs/train/runs/DATE/RUN policies=[wm,wm_prior]."""

from priorzero.app.cli import eval_main

if __name__ == "__main__":
    eval_main()
