"""Training that starts from a folder which ``fairy2i-export SOURCE --calibrate`` wrote.

folder.py reads what that folder holds, latents.py finds latent weights that lead to its codes, student.py puts both into a model.
"""
