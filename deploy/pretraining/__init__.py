"""Studies of what finetuned models reveal about the examples that they were pretrained on."""
