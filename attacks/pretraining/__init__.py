"""What a finetuned model gives away about the examples that it was pretrained on."""
