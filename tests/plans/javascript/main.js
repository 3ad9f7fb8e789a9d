'use strict'
// An application on npm's @testground/sdk as it is: nothing in it knows that it may run on another machine.

const fs = require('fs')
const os = require('os')
const path = require('path')
const { invokeMap } = require('@testground/sdk')

invokeMap({
  // Everybody meets at a barrier; the first one there publishes, and everybody hears it.
  sync: async (runenv, client) => {
    const number = await client.signalAndWait('ready', runenv.testInstanceCount)
    const greeting = runenv.runParams.testInstanceParams.greeting
    if (number === 1) {
      await client.publish('greetings', { greeting, from: os.hostname() })
    }
    const subscription = await client.subscribe('greetings')
    const heard = (await subscription.wait.next()).value
    subscription.cancel()
    if (heard.greeting !== greeting) {
      throw new Error(`heard ${JSON.stringify(heard)}`)
    }
    runenv.recordMessage(`number ${number} on ${os.hostname()}, ${process.arch}, heard ${heard.greeting} from ${heard.from}`)
    fs.writeFileSync(path.join(runenv.testOutputsPath, 'heard.json'), JSON.stringify({ number, arch: process.arch, heard }))
    await client.signalAndWait('done', runenv.testInstanceCount)
  },
  fail: async (runenv, client) => {
    throw new Error('this case always fails')
  },
  crash: async (runenv, client) => {
    process.nextTick(() => { throw new TypeError('this case always crashes') })
    await new Promise(() => {})
  }
})
