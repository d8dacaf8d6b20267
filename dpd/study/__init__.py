"""The question of questions: does dual policy distillation help, and is it why one thinks?"""
