"""What a model is made of and where its numbers lose precision: for somebody who has to vouch for it."""
