// One template message to each follower with co-wechat-api, 64 calls at a time; prints what it took as JSON.
//
// WECHAT_API_BASE is the address that stands in for https://api.weixin.qq.com. PEER_LIMIT ends after so many people.
// NODE_MODULES is the folder that co-wechat-api is installed in.

import { createRequire } from 'node:module';
import { performance } from 'node:perf_hooks';

const WeChatAPI = createRequire(process.env.NODE_MODULES + '/')('co-wechat-api');

const WIDTH = 64;
const TEMPLATE_ID = process.env.WECHAT_TEMPLATE_ID;
const LIMIT = Number(process.env.PEER_LIMIT || Infinity);
const MINIPROGRAM = { appid: process.env.WECHAT_MINIPROGRAM_APP_ID, pagepath: 'pages/sale/index' };
const DATA = {
  thing1: { value: '巧克力' },
  time2: { value: '2026-11-23 09:30' },
  amount3: { value: '39.80元' },
};

const api = new WeChatAPI(process.env.WECHAT_APP_ID, process.env.WECHAT_APP_SECRET);
api.prefix = process.env.WECHAT_API_BASE.replace(/\/$/, '') + '/cgi-bin/';

const openids = [];
for (let after = ''; openids.length < LIMIT; ) {
  const page = await api.getFollowers(after);
  openids.push(...(page.data?.openid ?? []));
  after = page.next_openid;
  if (!page.data?.openid?.length || !after) break;
}
openids.length = Math.min(openids.length, LIMIT);

let next = 0;
let failed = 0;
async function work() {
  while (next < openids.length) {
    const openid = openids[next++];
    try {
      await api.sendTemplate(openid, TEMPLATE_ID, undefined, undefined, DATA, MINIPROGRAM);
    } catch (error) {
      failed += 1;
      console.error(`${openid}: ${error}`);
    }
  }
}

const began = performance.now();
await Promise.all(Array.from({ length: WIDTH }, work));
const seconds = (performance.now() - began) / 1000;

console.log(JSON.stringify({ people: openids.length, failed, seconds }));
process.exitCode = failed ? 1 : 0;
