"""Calls the tasks in Celery's own ways."""

from celery import chord
from shop.tasks import charge, invoice, price

orders = [{"item": "apple", "count": 2}, {"item": "pear", "count": 5}]
print(price.delay(orders[0]).get(timeout=30))
print((price.s(orders[1]) | charge.s()).apply_async(priority=9).get(timeout=30))
print(chord(price.s(order) for order in orders)(invoice.s()).get(timeout=30))
