// What users write with the `etcd3` package of npm.
//
// One line for each case: `ok NAME` or `FAILED NAME: why`.
'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const { Etcd3, EtcdLockFailedError, EtcdRoleNotFoundError, EtcdUserExistsError, Range } = require('etcd3');

const endpoints = process.argv[2].split(',').map((endpoint) => `http://${endpoint}`);
const CASE_LIMIT_MS = 30000;
// The package exports this as a constant of TypeScript only.
const SERIALIZABLE = 1;

async function eventually(what, holds) {
  const until = Date.now() + CASE_LIMIT_MS / 2;
  while (!(await holds())) {
    assert.ok(Date.now() < until, `${what} did not come about`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

// The next `count` events of a watcher, collected from the moment of the call.
function events(watcher, count) {
  const seen = [];
  return new Promise((resolve, reject) => {
    const take = (kind) => (pair, before) => {
      seen.push(`${kind} ${pair.value}${before && before.value.length ? ` before ${before.value}` : ''}`);
      if (seen.length === count) {
        resolve(seen);
      }
    };
    watcher.on('put', take('put'));
    watcher.on('delete', take('delete'));
    watcher.on('error', reject);
  });
}

const cases = {
  async 'put-get-delete'(client) {
    await client.put('a').value('1');
    assert.equal(await client.get('a').string(), '1');
    const before = await client.put('a').value(2).getPrevious();
    assert.equal(before.value.toString(), '1');
    assert.equal(await client.get('a').number(), 2);
    const binary = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
    await client.put('a').value(binary);
    assert.deepEqual(await client.get('a').buffer(), binary);
    await client.put('a').value(JSON.stringify({ one: 1 }));
    assert.deepEqual(await client.get('a').json(), { one: 1 });
    await client.put('a').touch();
    assert.equal((await client.get('a').exec()).kvs[0].version, '5');
    assert.equal(await client.get('none').string(), null);
    assert.equal(await client.get('none').exists(), false);
    assert.equal((await client.delete().key('a').getPrevious())[0].value.toString(), '{"one":1}');
    assert.equal((await client.delete().key('a').exec()).deleted, '0');
  },

  async ranges(client) {
    for (const name of ['b', 'c', 'a']) {
      await client.put(name).value(name.toUpperCase());
    }
    assert.deepEqual(await client.getAll().strings(), { a: 'A', b: 'B', c: 'C' });
    assert.deepEqual(await client.getAll().sort('Key', 'Descend').limit(2).keys(), ['c', 'b']);
    assert.deepEqual(await client.getAll().sort('Create', 'Ascend').keys(), ['b', 'c', 'a']);
    assert.deepEqual(await client.getAll().inRange({ start: 'a', end: 'c' }).keys(), ['a', 'b']);
    assert.equal(await client.getAll().count(), 3);
    const revision = (await client.get('a').exec()).kvs[0].mod_revision;
    await client.put('a').value('changed');
    assert.equal(await client.get('a').revision(revision).string(), 'A');
    assert.equal(await client.get('a').serializable(true).exists(), true);
    assert.equal((await client.delete().all().exec()).deleted, '3');
  },

  async transactions(client) {
    await client.put('a').value('1');
    const well = await client
      .if('a', 'Value', '==', '1').and('none', 'Create', '==', 0)
      .then(client.put('a').value('2'), client.get('a'))
      .else(client.put('a').value('wrong'))
      .commit();
    assert.equal(well.succeeded, true);
    assert.equal(well.responses[1].response_range.kvs[0].value.toString(), '2');
    const other = await client.if('a', 'Version', '>', 9).then().else(client.delete().key('a')).commit();
    assert.equal(other.succeeded, false);
    assert.equal(await client.get('a').exists(), false);
  },

  async stm(client) {
    await client.put('left').value(100);
    await client.put('right').value(100);
    const move = (amount) => client.stm({ retries: 50, isolation: SERIALIZABLE }).transact(async (tx) => {
      const left = await tx.get('left').number();
      const right = await tx.get('right').number();
      await tx.put('left').value(left - amount);
      await tx.put('right').value(right + amount);
    });
    await Promise.all([1, 2, 3, 4].map(move));
    assert.deepEqual(await client.getAll().numbers(), { left: 90, right: 110 });
  },

  async leases(client) {
    const lease = client.lease(60);
    await lease.put('a').value('1');
    assert.equal((await lease.keepaliveOnce()).TTL, '60');
    assert.equal((await client.get('a').exec()).kvs[0].lease, await lease.grant());
    await lease.revoke();
    assert.equal(await client.get('a').exists(), false);
    const kept = client.lease(2);
    await kept.put('kept').value('1');
    await once(kept, 'keepaliveSucceeded');
    await once(kept, 'keepaliveSucceeded');
    assert.equal(await client.get('kept').exists(), true);
    const lost = once(kept, 'lost');
    await client.leaseClient.leaseRevoke({ ID: await kept.grant() });
    await lost;
    const dead = client.lease(1, { autoKeepAlive: false });
    await dead.put('dead').value('1');
    await eventually('the end of a lease', async () => !(await client.get('dead').exists()));
  },

  async locks(client) {
    const first = await client.lock('lock').ttl(60).acquire();
    await assert.rejects(client.lock('lock').ttl(60).acquire(), EtcdLockFailedError);
    await first.release();
    assert.equal(await client.lock('lock').do(() => 'done'), 'done');
  },

  async watches(client) {
    const watcher = await client.watch().prefix('').withPreviousKV().create();
    const seen = events(watcher, 3);
    await client.put('a').value('1');
    await client.put('a').value('2');
    await client.delete().key('a');
    assert.deepEqual(await seen, ['put 1', 'put 2 before 1', 'delete  before 2']);
    await watcher.cancel();
    const start = (await client.put('b').value('1')).header.revision;
    await client.put('b').value('2');
    const past = client.watch().key('b').startRevision(start).watcher();
    assert.deepEqual(await events(past, 2), ['put 1', 'put 2']);
    await past.cancel();
    const only = await client.watch().key('b').only('delete').create();
    const deleted = events(only, 1);
    await client.put('b').value('3');
    await client.delete().key('b');
    assert.deepEqual(await deleted, ['delete ']);
    await only.cancel();
  },

  async election(client) {
    const election = client.election('election', 5);
    assert.equal(await election.leader(), undefined);
    const first = election.campaign('one');
    await first.wait();
    assert.equal(await election.leader(), 'one');
    const observer = await election.observe();
    assert.equal(observer.leader(), 'one');
    const second = election.campaign('two');
    await second.getCampaignKey();
    await first.proclaim('one again');
    await eventually('what was proclaimed', () => observer.leader() === 'one again');
    // Asked before: whoever asks a campaign that was already won is never told.
    const won = second.wait();
    await first.resign();
    await won;
    await eventually('the new leader', () => observer.leader() === 'two');
    await observer.cancel();
    await second.resign();
  },

  async auth(client, whole) {
    const role = whole.role('node-role');
    await role.create();
    await role.grant({ permission: 'Readwrite', range: Range.from({ start: 'a', end: 'b' }) });
    assert.equal((await role.permissions())[0].permission, 'Readwrite');
    const user = whole.user('node-user');
    await user.create('secret');
    await user.addRole(role);
    assert.deepEqual((await user.roles()).map((each) => each.name), ['node-role']);
    await assert.rejects(user.create('secret'), EtcdUserExistsError);
    await user.delete();
    await role.delete();
    await assert.rejects(role.permissions(), EtcdRoleNotFoundError);
  },

  async maintenance(client, whole) {
    const status = await whole.maintenance.status();
    assert.ok(status.version && Number(status.raftTerm) > 0);
    const members = (await whole.cluster.memberList({})).members;
    assert.ok(members.some((member) => member.ID === status.leader));
  },
};

async function main() {
  const whole = new Etcd3({ hosts: endpoints });
  for (const [name, body] of Object.entries(cases)) {
    const client = whole.namespace(`/node/${name}/`);
    let timer;
    const limit = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not done in ${CASE_LIMIT_MS} ms`)), CASE_LIMIT_MS);
    });
    try {
      await client.delete().all();
      await Promise.race([body(client, whole), limit]);
      console.log(`ok node/${name}`);
    } catch (error) {
      process.exitCode = 1;
      console.log(`FAILED node/${name}: ${String(error).replaceAll('\n', ' ')}`);
    }
    clearTimeout(timer);
  }
  whole.close();
}

main().then(() => process.exit());
