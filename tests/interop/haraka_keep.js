// A plugin of Haraka that takes every recipient and keeps every mail: <n>.eml, then <n>.json in $KEPT.
'use strict'
const fs = require('node:fs')
const path = require('node:path')

let count = 0

const plain = (one) => (typeof one.address === 'function' ? one.address() : one.address) || ''

exports.hook_rcpt = function (next) {
  next(OK)
}

// With a login Haraka takes a mail for one to pass on, and asks these instead.
exports.hook_queue_outbound = function (next, connection) {
  exports.hook_queue.call(this, next, connection)
}

exports.hook_queue = function (next, connection) {
  const transaction = connection.transaction
  const name = path.join(process.env.KEPT, String(++count).padStart(4, '0'))
  const file = fs.createWriteStream(name + '.eml')
  file.on('finish', () => {
    const envelope = {
      from: plain(transaction.mail_from),
      to: transaction.rcpt_to.map(plain)
    }
    fs.writeFileSync(name + '.tmp', JSON.stringify(envelope))
    fs.renameSync(name + '.tmp', name + '.json')
    next(OK, 'kept')
  })
  transaction.message_stream.pipe(file, { line_endings: '\r\n', dot_stuffed: true, ending_dot: false })
}
