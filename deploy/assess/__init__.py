"""One attack on one run, compared with the truth about membership."""
