"""Load for the ledger, and the audit of what it wrote.

    wire.py         sessions with the server, in the frontend/backend protocol
    mixture.py      providers, models and the kinds of call that a load is made of
    load.py         many sessions that call, and are disturbed meanwhile
    replay.py       what the fake provider said to a request of its journal
    audit.py        clients, journal and ledger side by side

Run by ../ledger_load.py.
"""
