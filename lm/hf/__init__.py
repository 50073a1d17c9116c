"""How does a model of the Hugging Face ecosystem come in, and go out again?"""
