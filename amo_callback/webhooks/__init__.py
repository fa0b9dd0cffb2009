"""Delivery of webhooks: at least once, and in order per connection.

A webhook is stored in the transaction of the change that it reports, with an id that never changes. A receiver may get
it twice, and recognizes that by the id: after a crash between its response and the update of the row, or if a lease
expired during a delivery. The webhooks of one connection are sent one after the other. A slow or unreachable receiver
delays nothing but webhooks.

`store.history` stores webhooks for the events in `events.WEBHOOK_EVENTS`. Another notification channel needs a table of
its own, written and pruned there, a dispatcher like this one, settings, and a place in `web.composition`.

A copy of the database delivers nothing, because the original delivers the same webhooks.
"""
