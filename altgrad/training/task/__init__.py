"""What a run trains, as one object: model, loss, data, optimizer and the unit of the loss; the built-in GPT is one."""
