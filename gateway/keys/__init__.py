"""Who may ask the gateway, for what, and how much. Off unless a file of keys is named.

::

    request ─▶ credentials ─▶ ring ─▶ access ─▶ rations ─▶ the other layers
               the key that   whose   may this   rate, tokens,
               was sent       it is   role ask   at once: from
                                      this path  memory or Redis

`guard` is the first three, without waiting; `rations` the last, which may wait for a Redis. The rest says what a key is
(`form`, `records`), where its hash lies (`book`), and how one is made and revoked (``python -m gateway.keys``).
"""
