placeholder = 0
