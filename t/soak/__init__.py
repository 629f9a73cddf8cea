"""Everything at the same time, for a long time, and a look at what is left.

    providers.py    five providers: fakes in processes of their own, their journals, their rows
    weather.py      what befalls them, drawn beforehand
    sessions.py     sessions that call
    admin.py        an operator who changes the configuration meanwhile
    watch.py        looks at the breakers, and a line of progress from time to time
    checks.py       what must hold at the end

Run by ../../script/soak, as python3 -m soak.
"""
