def training_report(*a): pass
