"""What a finetuned model gives away about the examples that its start was trained on."""
