"""One template message to each follower with wechatpy, 64 threads at a time; prints what it took as JSON.

WECHAT_API_BASE is the address that stands in for https://api.weixin.qq.com. PEER_LIMIT ends after so many people.
"""

import itertools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import requests
from wechatpy import WeChatClient

WIDTH = 64
BASE = os.environ["WECHAT_API_BASE"].rstrip("/") + "/cgi-bin/"
TEMPLATE_ID = os.environ["WECHAT_TEMPLATE_ID"]
LIMIT = int(os.environ.get("PEER_LIMIT") or sys.maxsize)
MINIPROGRAM = {"appid": os.environ["WECHAT_MINIPROGRAM_APP_ID"], "pagepath": "pages/sale/index"}
DATA = {
    "thing1": {"value": "巧克力"},
    "time2": {"value": "2026-11-23 09:30"},
    "amount3": {"value": "39.80元"},
}


class Client(WeChatClient):
    # Every call but the token's goes to API_BASE_URL; the token's address is written out in WeChatClient.
    API_BASE_URL = BASE

    def fetch_access_token(self):
        return self._fetch_access_token(
            url=BASE + "token",
            params={"grant_type": "client_credential", "appid": self.appid, "secret": self.secret},
        )


client = Client(os.environ["WECHAT_APP_ID"], os.environ["WECHAT_APP_SECRET"])
# As it comes, requests keeps ten connections; the other 54 threads would open one for each call.
client._http.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=WIDTH))

openids = list(itertools.islice(client.user.iter_followers(), LIMIT))
# A list's iterator hands each item to one thread only.
waiting = iter(openids)


def work():
    failed = 0
    for openid in waiting:
        try:
            client.message.send_template(openid, TEMPLATE_ID, DATA, mini_program=MINIPROGRAM)
        except Exception as error:
            failed += 1
            print(f"{openid}: {error!r}", file=sys.stderr)
    return failed


began = time.perf_counter()
with ThreadPoolExecutor(WIDTH) as pool:
    failed = sum(worker.result() for worker in [pool.submit(work) for _ in range(WIDTH)])
seconds = time.perf_counter() - began

print(json.dumps({"people": len(openids), "failed": failed, "seconds": seconds}))
sys.exit(1 if failed else 0)
