"""Search service: python retrieve.py corpus.jsonl --port 8000."""

from priorzero.rollout.retriever import main

if __name__ == "__main__":
    main()
