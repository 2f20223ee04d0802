"""How processes are started, tied to their parent, signalled and talked to; what runs in them is not known here."""
