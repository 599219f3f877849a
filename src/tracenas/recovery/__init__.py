"""Recovery after pruning: continued pretraining, LoRA instruction tuning and distillation, on one trainer.

Nothing is imported here: transformers' Trainer takes 13–16 s to import, and wrong input is told before.
"""
