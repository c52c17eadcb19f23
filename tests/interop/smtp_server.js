// npm's smtp-server, keeping what it gets: <n>.eml, then <n>.json. Its settings are the first argument, JSON.
'use strict'
const fs = require('node:fs')
const path = require('node:path')
const { SMTPServer } = require('smtp-server')

const settings = JSON.parse(process.argv[2])
let count = 0

const options = {
  name: 'localhost',
  size: settings.size,
  authOptional: true,
  hideDSN: false,
  disableReverseLookup: true,
  cert: fs.readFileSync(settings.cert),
  key: fs.readFileSync(settings.key),
  onAuth (auth, session, done) {
    const right = auth.username === settings.user && auth.password === settings.password
    done(right ? null : new Error('wrong'), right ? { user: auth.username } : undefined)
  },
  onData (stream, session, done) {
    const name = path.join(settings.kept, String(++count).padStart(4, '0'))
    const file = fs.createWriteStream(name + '.eml')
    stream.pipe(file)
    file.on('finish', () => {
      const { mailFrom, rcptTo } = session.envelope
      const envelope = { from: mailFrom ? mailFrom.address : '', to: rcptTo.map((one) => one.address) }
      fs.writeFileSync(name + '.tmp', JSON.stringify(envelope))
      fs.renameSync(name + '.tmp', name + '.json')
      done(null, 'kept')
    })
  }
}

new SMTPServer(options).listen(settings.port, '127.0.0.1')
new SMTPServer({ ...options, secure: true }).listen(settings.tlsPort, '127.0.0.1')
