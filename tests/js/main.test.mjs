// The main journeys through the official JavaScript SDK, with Node's own test runner.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { CommandExitError, FilesystemEventType, Sandbox } from 'e2b'

const options = {
  apiKey: process.env.E2B_API_KEY,
  apiUrl: process.env.E2B_API_URL,
  sandboxUrl: process.env.E2B_SANDBOX_URL,
}
let box

before(async () => {
  box = await Sandbox.create({ ...options, timeoutMs: 120_000, metadata: { from: 'js' } })
})
after(async () => {
  await box.kill()
})

test('runs commands', async () => {
  const result = await box.commands.run('echo out; echo err >&2')
  assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n', 'err\n', 0])
  await assert.rejects(box.commands.run('exit 4'), (error) => error instanceof CommandExitError && error.exitCode === 4)
})

test('streams, takes stdin and kills', async () => {
  const handle = await box.commands.run('cat', { background: true, stdin: true })
  await box.commands.sendStdin(handle.pid, 'hello')
  await box.commands.closeStdin(handle.pid)
  assert.equal((await handle.wait()).stdout, 'hello')
  const slow = await box.commands.run('sleep 100', { background: true })
  assert.equal(await slow.kill(), true)
})

test('keeps files', async () => {
  await box.files.write('js/a.txt', 'text')
  assert.equal(await box.files.read('js/a.txt'), 'text')
  assert.deepEqual((await box.files.list('js')).map((entry) => entry.name), ['a.txt'])
  assert.equal(await box.files.exists('js/none'), false)
  await box.files.rename('js/a.txt', 'js/b.txt')
  await box.files.remove('js/b.txt')
})

test('watches a folder', async () => {
  await box.files.makeDir('seen')
  const created = new Promise((resolve) => {
    box.files.watchDir('seen', (event) => event.type === FilesystemEventType.CREATE && resolve(event.name))
      .then(() => box.files.write('seen/now', '1'))
  })
  assert.equal(await created, 'now')
})

test('opens a terminal', async () => {
  let seen = ''
  const terminal = await box.pty.create({ cols: 80, rows: 24, onData: (data) => { seen += new TextDecoder().decode(data) } })
  await box.pty.sendInput(terminal.pid, new TextEncoder().encode('echo $((2 * 21)); exit\n'))
  await terminal.wait()
  assert.match(seen, /42/)
})

test('lists, connects, extends, and says what is not there', async () => {
  const page = await Sandbox.list({ ...options, query: { metadata: { from: 'js' } } }).nextItems()
  assert.deepEqual(page.map((info) => info.sandboxId), [box.sandboxId])
  const again = await Sandbox.connect(box.sandboxId, options)
  assert.equal((await again.commands.run('whoami')).stdout, 'user\n')
  await again.setTimeout(300_000)
  await assert.rejects(Sandbox.create('no-such-template', options), /404/)
  assert.equal(await Sandbox.kill('i00000000000000000000', options), false)
})
