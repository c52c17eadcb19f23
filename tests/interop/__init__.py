"""Other people's servers: the same mails through each of them, and whether they arrive intact (`make interop`)."""
