"""The numbers of a run: metrics.jsonl always; wandb, TensorBoard, MLflow where wanted."""
