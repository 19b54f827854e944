"""The judge: does every runtime answer like the trained network?"""
