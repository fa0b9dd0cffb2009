"""Delivery of webhooks, at least once and in order.

The row is written with the change that it reports. Its id never changes, so a receiver recognises one that comes
twice: after a crash between the receiver's answer and the row's end, or where a lease ended under a
delivery, it is sent again. A connection's webhooks go one after the other; a receiver that is slow or away holds up
nothing but webhooks.

`store.history` writes the row, for the events in `events.WEBHOOK_EVENTS`; another channel needs rows of its own
there, and a dispatcher like this one.

A copy of the database delivers nothing: what waits in it waits in the original, too, and is delivered there.
"""
