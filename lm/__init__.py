"""lm: raw text to a trained, fine-tuned, evaluated language model, in JAX.

configs/x.py -> launch.py -> data_pipeline/{sources,clean,augment,tokenizer,tasks,pack,batch}
             -> lm/batch -> lm/build -> lm/train -> lm/step (-> lm/losses -> lm/model ; lm/optim)
             -> lm/checkpoint -> lm/evaluate, lm/generate
"""

__version__ = "0.1.0"
