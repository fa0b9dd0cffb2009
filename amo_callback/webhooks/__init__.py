"""Delivery of webhooks: at least once, and in order per connection.

A webhook is stored in the same transaction as the change that it reports, with an id that never changes. A webhook may
be delivered twice: after a crash between the receiver's response and the update of the row, or if its lease expires
during a delivery. The receiver can recognize a duplicate by its id. The webhooks of one connection are sent one after
the other. A slow or unreachable receiver delays only webhooks.

`store.history` stores a webhook for each event in `events.WEBHOOK_EVENTS`. Another notification channel would require a
table that `store.history` writes and prunes, a dispatcher, settings, and an addition to `web.composition`.

A twin (a copied database) delivers no webhooks, because the original database delivers them.
"""
