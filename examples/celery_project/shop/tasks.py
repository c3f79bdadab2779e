"""Plain Celery tasks: retries, a queue of their own, a chord."""

from shop.celery import app

PRICES = {"apple": 3, "pear": 4}


@app.task
def price(order):
    return PRICES[order["item"]] * order["count"]


@app.task(bind=True, max_retries=3)
def charge(self, amount):
    if self.request.retries == 0:
        raise self.retry(countdown=0.1)  # the bank does not answer at once
    return {"charged": amount, "attempts": self.request.retries + 1}


@app.task
def invoice(amounts):
    return {"lines": len(amounts), "total": sum(amounts)}
